package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

// Environment names of the client commands. The secret has no flag: flags are
// visible to every user of the machine.
const (
	envAddr        = "COHORTBRIDGE_ADDR"
	envUsername    = "COHORTBRIDGE_USERNAME"
	envSecret      = "COHORTBRIDGE_SECRET"
	envProject     = "COHORTBRIDGE_PROJECT"
	envCredentials = "COHORTBRIDGE_CREDENTIALS"
)

func addClientFlags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.String("addr", "", "gRPC address, host:port (default from the credentials file; env "+envAddr+")")
	f.Bool("tls", false, "use TLS")
	f.String("credentials", "", "file with credentials, as --dev writes it (default data/dev-credentials.json; env "+envCredentials+")")
	f.String("username", "", "service account (env "+envUsername+"; its secret is read from "+envSecret+")")
	f.String("project", "", "project id (default from the credentials file; env "+envProject+")")
	f.StringP("output", "o", "table", "table or json")
	f.String("operator-key-file", "", "file with the operator's key, to act as the operator")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// client is a connection with what a command needs around it.
type client struct {
	conn    *grpc.ClientConn
	project string
	json    bool
	out     io.Writer
	err     io.Writer
}

type headerCredentials struct {
	header string
	tls    bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (h headerCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": h.header}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (h headerCredentials) RequireTransportSecurity() bool { return h.tls }

func firstSet(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func connect(cmd *cobra.Command) (*client, error) {
	str := func(name string) string { s, _ := cmd.Flags().GetString(name); return s }
	path := firstSet(str("credentials"), os.Getenv(envCredentials), filepath.Join("data", roles.DevCredentialsFile))
	file, err := roles.ReadDevCredentials(path)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || str("credentials") != "") {
		return nil, err
	}
	user := firstSet(str("username"), os.Getenv(envUsername), file.ServiceAccount)
	secret := firstSet(os.Getenv(envSecret), file.ServiceSecret)
	header := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))
	if keyFile := str("operator-key-file"); keyFile != "" {
		key, err := os.ReadFile(keyFile)
		if err != nil {
			return nil, err
		}
		header = "Bearer " + strings.TrimSpace(string(key))
	} else if user == "" || secret == "" {
		return nil, fmt.Errorf("no credentials: give --credentials FILE, or %s and %s", envUsername, envSecret)
	}
	useTLS, _ := cmd.Flags().GetBool("tls")
	var creds credentials.TransportCredentials
	if useTLS {
		creds = credentials.NewClientTLSFromCert(nil, "")
	}
	conn, err := rpc.Dial(firstSet(str("addr"), os.Getenv(envAddr), file.GRPCAddr, "127.0.0.1:9090"), creds, headerCredentials{header, useTLS})
	if err != nil {
		return nil, err
	}
	project := firstSet(str("project"), os.Getenv(envProject), file.ProjectID)
	output := str("output")
	if output != "table" && output != "json" {
		return nil, fmt.Errorf("--output: want table or json, got %q", output)
	}
	return &client{conn: conn, project: "projects/" + strings.TrimPrefix(project, "projects/"), json: output == "json", out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}, nil
}

// run wraps a command's function with the connection.
func run(fn func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := connect(cmd)
		if err != nil {
			return err
		}
		defer func() { _ = c.conn.Close() }() // nothing is pending
		return fn(cmd.Context(), c, cmd, args)
	}
}

// print shows a message as JSON, or the rows as a table.
func (c *client) print(msg proto.Message, header table.Row, rows []table.Row) error {
	if c.json {
		b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true, Multiline: true}.Marshal(msg)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.out, string(b))
		return err
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(c.err, "none")
		return err
	}
	t := table.NewWriter()
	t.SetOutputMirror(c.out)
	t.SetStyle(table.StyleLight)
	t.Style().Options.SeparateColumns = false
	t.Style().Options.DrawBorder = false
	t.AppendHeader(header)
	t.AppendRows(rows)
	t.Render()
	return nil
}

// showsProgress says whether somebody looks at a progress bar.
func (c *client) showsProgress() bool {
	f, ok := c.err.(*os.File)
	return ok && !c.json && term.IsTerminal(int(f.Fd()))
}

// id is the last part of a resource name.
func id(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// name makes a full resource name of what a person typed: an id, or the name.
func (c *client) name(collection, arg string) string {
	if strings.HasPrefix(arg, "projects/") {
		return arg
	}
	return c.project + "/" + collection + "/" + arg
}
