package roles

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// OperatorKeyFile is the file in the data folder that holds the operator's key.
const OperatorKeyFile = "operator.key"

// DevCredentialsFile is the file in the data folder that --dev writes.
const DevCredentialsFile = "dev-credentials.json"

func randomKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// operatorKey reads the operator's key, or makes one.
func operatorKey(dataDir string) (string, error) {
	path := filepath.Join(dataDir, OperatorKeyFile)
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key := randomKey()
	return key, writeFile(path, []byte(key+"\n"))
}

// DevCredentials is what --dev writes for programs that try the system out.
type DevCredentials struct {
	// ProjectID is the project's number.
	ProjectID string `json:"project_id"`
	// ProjectToken is the public token for /track and /engage.
	ProjectToken string `json:"project_token"`
	// ProjectSecret is accepted as Basic user on /import.
	ProjectSecret string `json:"project_secret"`
	// ServiceAccount is the Basic user of an OWNER.
	ServiceAccount string `json:"service_account"`
	// ServiceSecret is its password.
	ServiceSecret string `json:"service_secret"`
	// HTTPAddr, GRPCAddr and SandboxAddr are host:port.
	HTTPAddr string `json:"http_addr"`
	// GRPCAddr is the gRPC address.
	GRPCAddr string `json:"grpc_addr"`
	// SandboxAddr is the sandbox's, empty without one.
	SandboxAddr string `json:"sandbox_addr"`
}

// ReadDevCredentials reads the file; a missing one is fs.ErrNotExist.
func ReadDevCredentials(path string) (DevCredentials, error) {
	var c DevCredentials
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func (c DevCredentials) write(path string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// writeFile writes a private file whole or not at all.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
