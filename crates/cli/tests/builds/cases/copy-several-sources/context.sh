echo a >a; echo b >b; mkdir dir; echo c >dir/c; mkdir dir/sub; echo d >dir/sub/d
