mkdir -p sub sub2/sub; for f in a.md b.txt sub/c.md sub/x sub/d.txt sub2/sub/e sub2/f; do echo $f >$f; done
