echo hush >secret.txt
