echo a >a; mkdir -p dir/sub; echo b >dir/sub/b
