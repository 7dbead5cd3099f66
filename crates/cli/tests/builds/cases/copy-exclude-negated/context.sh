for f in a.txt keep.txt; do echo $f >$f; done
