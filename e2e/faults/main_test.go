//go:build faults

package faults

import (
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// TestMain also searches everything the processes said for secrets and e-mail
// addresses, after all tests.
func TestMain(m *testing.M) { harness.Main(m.Run) }
