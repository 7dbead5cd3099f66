for f in a.txt b.txt zz.txt q.md qq.md '*lit' xlit; do echo $f >"$f"; done; mkdir d1 d2; echo 1 >d1/f; echo 22 >d2/f
