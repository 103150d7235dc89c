package secretfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// own is a security descriptor in SDDL: of a file, or of a folder and what is made in it (inherit "OICI"), that inherits nothing. All
// rights are the system's, the administrators', and this user's. Who runs with the rights of an administrator makes what is the
// administrators' alone, so that a service finds no other user in what an administrator has put there.
func own(inherit string) (string, error) {
	who, owner := []string{"SY", "BA"}, "BA"
	if token := windows.GetCurrentProcessToken(); !token.IsElevated() {
		user, err := self()
		if err != nil {
			return "", err
		}
		owner = user.String()
		who = append(who, owner)
	}
	text := "O:" + owner + "D:P"
	for _, w := range who {
		text += "(A;" + inherit + ";FA;;;" + w + ")"
	}
	return text, nil
}

// self is the user of this process.
func self() (*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("who runs this: %w", err)
	}
	return user.User.Sid, nil
}

// restrict gives a file to this user, the system and the administrators alone.
func restrict(path string) error {
	text, err := own("")
	if err != nil {
		return err
	}
	if err := describe(path, text); err != nil {
		return &fs.PathError{Op: "restrict", Path: path, Err: err}
	}
	return nil
}

// describe gives a file a security descriptor, in SDDL, as it is: SetNamedSecurityInfo would add what the folder hands down, which wine
// does even to a list that is protected from it.
func describe(path, text string) error {
	descriptor, err := windows.SecurityDescriptorFromString(text)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	file, err := windows.CreateFile(name, windows.WRITE_DAC|windows.WRITE_OWNER|windows.READ_CONTROL,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(file)
	return windows.SetKernelObjectSecurity(file,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, descriptor)
}

// MakeFolder makes a folder for this user, the system and the administrators alone, and those that it is in, if they are not there.
// One that is there must be theirs: everybody may make folders in %ProgramData%, and would keep all rights in what is put there.
func MakeFolder(path string) error {
	user, err := self()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	text, err := own("OICI")
	if err != nil {
		return err
	}
	descriptor, err := windows.SecurityDescriptorFromString(text)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	err = windows.CreateDirectory(name, attributes)
	if err == nil {
		return nil
	}
	if st, e := os.Stat(path); !errors.Is(err, fs.ErrExist) || e != nil || !st.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	there, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return &fs.PathError{Op: "owner", Path: path, Err: err}
	}
	if owner, _, err := there.Owner(); err != nil || !trusted(owner, user) {
		return fmt.Errorf("%s belongs to another user (%v), who can read what is put there; remove it, or name another folder with -state", path, owner)
	}
	return nil
}

// trusted tells whether somebody may read our secrets: this user, the system, the administrators.
func trusted(who, user *windows.SID) bool {
	return who.Equals(user) || who.IsWellKnown(windows.WinLocalSystemSid) || who.IsWellKnown(windows.WinBuiltinAdministratorsSid) ||
		who.IsWellKnown(windows.WinCreatorOwnerRightsSid) // the owner's, whose rights are looked at
}

// Rights by which somebody reads a file, or changes it; both hold those to get all others.
const (
	gets   = windows.WRITE_DAC | windows.WRITE_OWNER | windows.GENERIC_ALL
	reads  = gets | windows.FILE_READ_DATA | windows.GENERIC_READ
	writes = gets | windows.FILE_WRITE_DATA | windows.FILE_APPEND_DATA | windows.GENERIC_WRITE | windows.DELETE
)

// OthersRead tells whether a file's access control list lets somebody read it who is neither this user nor the system nor an
// administrator, and what ends that. Entries that deny count for nothing: they may be of another group. What is no file on a
// disk, such as a pipe, has a list that says nothing.
func OthersRead(f *os.File) (others bool, remedy string, err error) { return othersHave(f, reads) }

// OthersWrite tells whether it lets such a one change it, and what ends that.
func OthersWrite(f *os.File) (others bool, remedy string, err error) { return othersHave(f, writes) }

func othersHave(f *os.File, rights windows.ACCESS_MASK) (others bool, remedy string, err error) {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return false, "", err
	}
	user, err := self()
	if err != nil {
		return false, "", err
	}
	descriptor, err := windows.GetSecurityInfo(windows.Handle(f.Fd()), windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return false, "", fmt.Errorf("who may read %s: %w", f.Name(), err)
	}
	remedy = `icacls "` + f.Name() + `" /inheritance:r /grant:r "%USERNAME%:F"`
	if owner, _, err := descriptor.Owner(); err != nil || !trusted(owner, user) {
		return true, remedy, nil // who owns a file may give all rights to himself
	}
	list, _, err := descriptor.DACL()
	if err != nil || list == nil { // none at all: everybody may do everything
		return true, remedy, nil
	}
	for i := range uint32(list.AceCount) {
		var entry *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, i, &entry); err != nil {
			return false, "", fmt.Errorf("who may read %s: %w", f.Name(), err)
		}
		switch {
		case entry.Header.AceType == windows.ACCESS_DENIED_ACE_TYPE || entry.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0:
		case entry.Header.AceType != windows.ACCESS_ALLOWED_ACE_TYPE: // with a condition, say
			return true, remedy, nil
		case entry.Mask&rights != 0 && !trusted((*windows.SID)(unsafe.Pointer(&entry.SidStart)), user):
			return true, remedy, nil
		}
	}
	return false, "", nil
}
