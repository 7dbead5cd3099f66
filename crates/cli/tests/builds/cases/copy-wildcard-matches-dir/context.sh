mkdir -p d1/sub d2; echo 1 >d1/sub/a; echo 2 >d2/b; echo 3 >d3
