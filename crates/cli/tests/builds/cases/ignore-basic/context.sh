printf '# comment\n  spaced  \n\n*.log\n/abs\ndir/\nsub/*.tmp\n#not\n .hidden\n' >.dockerignore
mkdir dir sub; for f in spaced a.log sub/b.log abs sub/abs dir/x sub/c.tmp c.tmp '#not' .hidden keep; do echo x >"$f"; done
