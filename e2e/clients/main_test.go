//go:build clients

package clients

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// shared is the process that most tests use, each with projects of its own.
var shared struct {
	once sync.Once
	proc *harness.Process
	dir  string
}

// project makes a project in the shared process.
func project(t *testing.T, identity typev1.IdentitySystem) *harness.Client {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "cohortbridge-clients-")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir, shared.proc = dir, harness.LastingStandalone(t, dir)
	})
	if shared.proc == nil {
		t.Fatal("the shared process did not start")
	}
	return shared.proc.NewProject(t, shared.dir, identity)
}

const (
	simplified = typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED
	original   = typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL
)

// TestMain also searches everything the processes said for secrets and e-mail
// addresses, after all tests.
func TestMain(m *testing.M) {
	harness.Main(func() int {
		code := m.Run()
		if shared.proc != nil {
			if err := shared.proc.End(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
			_ = os.RemoveAll(shared.dir) // a temporary folder
		}
		return code
	})
}
