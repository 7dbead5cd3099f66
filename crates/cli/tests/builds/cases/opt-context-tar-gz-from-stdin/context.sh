echo a >a; touch -d @5 a; tar -cf - Dockerfile a | gzip -n >ctx.tgz
