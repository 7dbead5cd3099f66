mkdir a b; echo 1 >a/f; echo 22 >b/f
