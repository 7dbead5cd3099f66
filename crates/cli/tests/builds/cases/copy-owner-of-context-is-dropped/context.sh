mkdir dir; echo a >dir/f; chown 1000:1001 dir dir/f
