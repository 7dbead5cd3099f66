mkdir -p a/b; echo 1 >f; echo 2 >a/f; echo 3 >a/b/f
