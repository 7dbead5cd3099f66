printf 'a\n!\n' >.dockerignore; echo a >a
