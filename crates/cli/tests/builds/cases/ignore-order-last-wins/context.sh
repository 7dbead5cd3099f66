printf '!a.txt\n*.txt\n!b.txt\n*b.txt\n!c.txt\n' >.dockerignore; for f in a b c; do echo $f >$f.txt; done
