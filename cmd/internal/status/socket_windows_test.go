package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/ipc/namedpipe"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// pipesOf are names that no other test has.
func pipesOf(t *testing.T) string {
	return fmt.Sprintf(`%ssluice-%d-%s-`, pipes, os.Getpid(), t.Name())
}

// TestPipe: a node serves and is asked, and is found among the pipes; its name is nobody else's as long as it lives.
func TestPipe(t *testing.T) {
	dir := pipesOf(t)
	path := PathIn(dir, "sluice0")
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "no node is running there") {
		t.Errorf("absent: %v", err)
	}
	if list, err := Sockets(dir); err != nil && !errors.Is(err, windows.ERROR_BAD_DEV_TYPE) || len(list) != 0 {
		t.Errorf("no pipes: %q, %v", list, err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(edge.Status{Name: "office", ListenPort: 7})
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	for range 3 {
		if s, err := NewNode(path).Get(context.Background()); err != nil || s.Name != "office" || s.ListenPort != 7 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if list, err := Sockets(dir); errors.Is(err, windows.ERROR_BAD_DEV_TYPE) {
		t.Log("this Windows, which is wine, lists no pipes")
	} else if err != nil || !slices.Equal(list, []string{path}) {
		t.Errorf("got %q, %v, want %q", list, err, path)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "made by another program") {
		t.Errorf("a name that is taken: %v", err)
	}
	server.Close()
	<-served
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "no node is running there") {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := Listen("sluice0"); err == nil || !strings.Contains(err.Error(), "no name of a pipe") {
		t.Errorf("a path that is no pipe's: %v", err)
	}
}

// TestForeignPipe: what belongs to somebody else is not asked.
func TestForeignPipe(t *testing.T) {
	path := PathIn(pipesOf(t), "sluice0")
	// Network Service, which who runs tests is not.
	descriptor, err := windows.SecurityDescriptorFromString("O:NSD:P(A;;GA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&namedpipe.ListenConfig{SecurityDescriptor: descriptor}).Listen(path)
	if err != nil {
		t.Skipf("SKIPPED: this user may make no pipe for another: %v", err)
	}
	defer l.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 100)
		n, _ := conn.Read(buf)
		asked <- string(buf[:n])
	}()
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "somebody else has made this socket") {
		t.Errorf("got %v, want that it is not asked", err)
	}
	if text := <-asked; text != "" {
		t.Errorf("it was told %q", text)
	}
}

// TestPipeRights: user, administrators and system may open the pipe, and nobody else.
func TestPipeRights(t *testing.T) {
	descriptor, err := ownDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := descriptor.DACL()
	if err != nil {
		t.Fatal(err)
	}
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if list.AceCount != 3 {
		t.Errorf("%d entries, want 3: %v", list.AceCount, descriptor)
	}
	for _, want := range []string{"S-1-5-18", "S-1-5-32-544", self.User.Sid.String()} {
		found := false
		for i := range uint32(list.AceCount) {
			var entry *windows.ACCESS_ALLOWED_ACE
			if err := windows.GetAce(list, i, &entry); err != nil {
				t.Fatal(err)
			}
			found = found || (*windows.SID)(unsafe.Pointer(&entry.SidStart)).String() == want
		}
		if !found {
			t.Errorf("%s may not open it: %v", want, descriptor)
		}
	}
}
