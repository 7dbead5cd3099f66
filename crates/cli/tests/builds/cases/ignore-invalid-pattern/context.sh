printf '[a-\n' >.dockerignore
