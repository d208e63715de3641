// Command cohortbridge runs any role of cohortbridge, or all of them in one
// process, and is its command line client.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/cli"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
)

func main() {
	if err := cli.Root().ExecuteContext(lifecycle.Signals(context.Background())); err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+cli.ErrorText(err))
		os.Exit(1)
	}
}
