echo a >a; touch -d @5 a; tar -cf ctx.tar Dockerfile a
