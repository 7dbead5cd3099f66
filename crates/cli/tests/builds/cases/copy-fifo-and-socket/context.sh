mkdir dir; mkfifo dir/p; echo a >dir/a
