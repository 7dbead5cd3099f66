echo none >.dockerignore
