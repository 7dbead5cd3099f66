mkdir -p t/passwd; echo x >t/passwd/x; touch -d @20 t/passwd/x t/passwd; tar -C t -cf a.tar passwd; rm -r t
