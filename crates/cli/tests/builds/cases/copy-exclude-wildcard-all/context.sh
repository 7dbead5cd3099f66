mkdir dir; echo 1 >dir/f
