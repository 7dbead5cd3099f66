printf '../a\n/b\nc/\n./d\n//e\n' >.dockerignore; for f in a b c d e; do echo $f >$f; done
