echo a >f; ln -s /f link
