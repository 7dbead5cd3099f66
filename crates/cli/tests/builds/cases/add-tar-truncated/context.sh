head -c 30000 /bin/busybox >f; tar -cf - f | gzip -nc | head -c 5000 >a.tar.gz
