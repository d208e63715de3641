package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/cohortbridge/cohortbridge/platform/config"
)

type cfg struct {
	HTTPAddr string        `koanf:"http_addr"`
	Wait     time.Duration `koanf:"wait"`
	Dev      bool          `koanf:"dev"`
	Key      string        `koanf:"key" secret:"true"`
}

// Validate refuses a negative wait.
func (c *cfg) Validate() error {
	if c.Wait < 0 {
		return errors.New("wait: can't be negative")
	}
	return nil
}

func load(t *testing.T, yaml string, args ...string) (*cfg, error) {
	t.Helper()
	c := &cfg{HTTPAddr: "default", Wait: time.Second, Key: "k"}
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	flags.String("http-addr", "flag default", "")
	flags.Duration("wait", time.Hour, "")
	flags.Bool("dev", false, "")
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	path := ""
	if yaml != "" {
		path = filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c, config.Load(c, path, flags)
}

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	check := func(what string, c *cfg, err error, addr string, wait time.Duration) {
		t.Helper()
		if err != nil || c.HTTPAddr != addr || c.Wait != wait {
			t.Errorf("%s: %+v, %v; want %s %s", what, c, err, addr, wait)
		}
	}
	c, err := load(t, "")
	check("defaults", c, err, "default", time.Second)
	const file = "http_addr: file\nwait: 2s\n"
	c, err = load(t, file)
	check("file", c, err, "file", 2*time.Second)
	t.Setenv("COHORTBRIDGE_HTTP_ADDR", "env")
	t.Setenv("COHORTBRIDGE_USERNAME", "of the client commands")
	c, err = load(t, file)
	check("environment", c, err, "env", 2*time.Second)
	c, err = load(t, file, "--http-addr=flag", "--dev")
	check("flag", c, err, "flag", 2*time.Second)
	if !c.Dev {
		t.Error("--dev is lost")
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	for what, tc := range map[string]struct{ yaml, arg, names string }{
		"unknown key": {"htpp_addr: x\n", "", "htpp_addr"},
		"not valid":   {"", "--wait=-1s", "wait"},
		"not YAML":    {"\t:", "", "config file"},
	} {
		args := []string{}
		if tc.arg != "" {
			args = append(args, tc.arg)
		}
		if _, err := load(t, tc.yaml, args...); err == nil || !strings.Contains(err.Error(), tc.names) {
			t.Errorf("%s: %v, want an error that names %s", what, err, tc.names)
		}
	}
}

func TestMaskedShowsEverythingButSecrets(t *testing.T) {
	got := fmt.Sprint(config.Masked(&cfg{HTTPAddr: "a:1", Wait: time.Second, Key: "hunter2"}))
	if strings.Contains(got, "hunter2") || !strings.Contains(got, "key:***") || !strings.Contains(got, "a:1") || !strings.Contains(got, "1s") {
		t.Errorf("masked: %s", got)
	}
}
