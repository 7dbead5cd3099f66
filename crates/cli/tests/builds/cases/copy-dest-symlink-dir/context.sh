echo a >a; mkdir -p dir/s; echo b >dir/s/b
