mkdir -p a/b; echo 1 >a/b/skip; echo 2 >a/b/keep
