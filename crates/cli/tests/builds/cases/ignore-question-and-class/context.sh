printf '?\n[!x]y\n*/deep\n' >.dockerignore; mkdir -p d/deep d/e/deep; for f in a bb xy zy d/deep/f d/e/deep/f; do echo x >$f; done
