mkdir dir; echo b >dir/b
