//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// smallDisk mounts a file system of some megabytes, with so many of them taken.
func smallDisk(t *testing.T, size, taken int) (dir string, makeRoom func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", size)); err != nil {
		t.Fatalf("mounting a small disk needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, taken<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAFullDiskLosesNothingAcknowledgedAndServiceGoesOnWhenThereIsRoom fills the
// disk at two moments: while the log of the event store is written, and while the
// log is moved into the store, after which the engine refuses everything until it
// is opened anew.
func TestAFullDiskLosesNothingAcknowledgedAndServiceGoesOnWhenThereIsRoom(t *testing.T) {
	for name, free := range map[string]int{"writing the log": 30, "moving the log": 72} {
		t.Run(name, func(t *testing.T) {
			const room, refusals = 120, 8
			mount, makeRoom := smallDisk(t, free+room, room)
			dir := filepath.Join(mount, "data")
			c := harness.PlainStandalone(t, dir).Client(t)
			im := newImporter()
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { im.send(ctx, c) })
			}
			// Full: callers get errors, again and again.
			harness.Eventually(t.Context(), t, 2*time.Minute, func(context.Context) error {
				im.mu.Lock()
				defer im.mu.Unlock()
				if n := im.fails[http.StatusServiceUnavailable]; n < refusals {
					return fmt.Errorf("%d calls failed, %d batches were stored", n, len(im.acked))
				}
				return nil
			})
			full := im.acknowledged()
			// A profile that can't be stored is not acknowledged either, or it is there.
			a := c.MustDo(t, http.MethodPost, "/engage?verbose=1", []byte(`[{"$token":"`+c.Creds.ProjectToken+`","$distinct_id":"when-full","$set":{"a":1}}]`), harness.JSONHead)
			makeRoom()
			harness.Eventually(t.Context(), t, 30*time.Second, func(context.Context) error {
				if n := im.acknowledged(); n < full+20 {
					return errors.New("no import succeeds after there is room again")
				}
				return nil
			})
			cancel()
			wg.Wait()
			for status := range im.fails {
				if status != 0 && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests { // 0: cut off by the test's end
					t.Errorf("answers %v: on a %d a client may drop its events", im.fails, status)
				}
			}
			im.verify(t, c, 0)
			if a.Status == http.StatusOK {
				if got := c.Profile(t, "when-full")["a"]; got != 1.0 {
					t.Errorf("the profile was acknowledged and is not there: %v", got)
				}
			}
			t.Logf("answers %v", im.fails)
		})
	}
}
