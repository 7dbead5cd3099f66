mkdir dir; echo a >dir/a; echo 'dir/*' >.dockerignore
