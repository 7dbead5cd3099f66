echo a >a; mkdir dir; echo b >dir/b
