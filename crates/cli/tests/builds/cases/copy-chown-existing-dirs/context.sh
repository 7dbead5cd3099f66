mkdir -p dir/sub; echo 1 >dir/sub/f
