echo content >a; mkdir dir; echo b >dir/b
