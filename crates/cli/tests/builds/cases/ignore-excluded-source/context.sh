echo a >secret.txt; echo '*.txt' >.dockerignore
