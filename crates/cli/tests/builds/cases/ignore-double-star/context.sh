printf '**/*.o\na/**/z\n**/cache\nb/**\n!b/keep\n' >.dockerignore
mkdir -p a/x/y b/c cache n/cache; for f in r.o a/q.o a/x/y/q.o a/z a/x/y/z b/f b/c/g b/keep cache/f n/cache/f n/ok; do echo x >$f; done
