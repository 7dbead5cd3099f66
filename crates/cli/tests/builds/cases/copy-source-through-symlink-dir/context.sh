mkdir -p dir/sub; echo f >dir/sub/f; ln -s dir dlink
