mkdir dir; echo b >dir/b; chmod 750 dir; touch -d @9 dir; echo a >a
