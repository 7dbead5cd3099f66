mkdir dir; echo 1 >dir/a.txt; printf 'dir\n' >.dockerignore
