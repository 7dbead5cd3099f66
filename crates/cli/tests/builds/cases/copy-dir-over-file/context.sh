mkdir dir; echo a >dir/a
