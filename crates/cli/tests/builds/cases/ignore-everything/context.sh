echo a >a; echo '*' >.dockerignore
