mkdir dir; echo a >dir/a; ln -s a dir/l; touch -h -d @5 dir/l
