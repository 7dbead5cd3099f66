printf '*\n!keep\n!dir/sub\ndir/sub/no\n!a*\na2\n' >.dockerignore
mkdir -p dir/sub/deep; for f in keep drop dir/f dir/sub/yes dir/sub/no dir/sub/deep/f a1 a2; do echo x >$f; done
