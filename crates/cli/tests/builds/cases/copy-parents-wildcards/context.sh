mkdir -p a/b/c d; touch main.go a/x.go a/b/c/y.go d/z.txt; echo f >a/b/f.txt; echo g >a/b/c/f.txt
