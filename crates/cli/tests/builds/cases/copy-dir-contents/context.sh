mkdir -p dir/sub dir/empty; echo 1 >dir/one; echo 2 >dir/sub/two; chmod 700 dir; chmod 1777 dir/empty; touch -d @50 dir dir/sub dir/empty
