echo 1 >a.txt; echo 2 >b.txt; mkdir dir; echo 1 >dir/f; printf 'a.txt\ndir\nb.txt\n' >.dockerignore
