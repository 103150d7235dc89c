package member

// giveToOwnerOf has nothing to do: files have the rights of their folder.
func giveToOwnerOf(string, string) error { return nil }
