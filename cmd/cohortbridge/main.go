// Command cohortbridge runs any role of cohortbridge, or all of them in one
// process, and is its command line client.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/cli"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Most memory is the engine's, outside of Go's heap. A batch makes much garbage
		// and little that stays: half the usual reserve is enough, and saves 50 MB.
		debug.SetGCPercent(50)
	}
	if err := cli.Root().ExecuteContext(lifecycle.Signals(context.Background())); err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+cli.ErrorText(err))
		os.Exit(1)
	}
}
