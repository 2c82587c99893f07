package keeper

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	pairFile = "pair.pem"     // key, certificate and chain in one file, so that they change in one step
	nextFile = "next-key.pem" // the key that a certificate is being asked for
)

// store has the key and the certificate on disk. A key is on disk before a certificate is asked for it: who dies in
// between asks for the same one again, and the broker answers from the same order.
type store struct{ folder string }

// pair reads what is in use; nil where there is nothing yet.
func (s store) pair() (*tls.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(s.folder, pairFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; move it away, and a new one is fetched", filepath.Join(s.folder, pairFile), err)
	}
	return &pair, nil
}

// nextKey is the key to ask with: the one that was begun with, else a new one, which is written first. A key that is in
// use already is none to ask with: who put it there died before it removed it from here.
func (s store) nextKey(inUse *tls.Certificate) (crypto.Signer, error) {
	begun, err := s.begun()
	if err != nil || begun != nil && (inUse == nil || !samePublicKey(inUse, begun)) {
		return begun, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, s.replace(nextFile, text)
}

func (s store) begun() (crypto.Signer, error) {
	text, err := os.ReadFile(filepath.Join(s.folder, nextFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(text); block != nil {
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
	}
	return nil, fmt.Errorf("%s holds no private key; remove it", filepath.Join(s.folder, nextFile))
}

// keep puts key and certificate (PEM, leaf first) into use, and the key is no longer the next one.
func (s store) keep(key crypto.Signer, certificates string) (*tls.Certificate, error) {
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	text = append(text, certificates...)
	pair, err := tls.X509KeyPair(text, text) // the certificate is of the key, or nothing is touched
	if err != nil {
		return nil, err
	}
	if err := s.replace(pairFile, text); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(s.folder, nextFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &pair, nil
}

// replace writes a file that is whole or as it was, and readable by nobody else.
func (s store) replace(name string, text []byte) error {
	file, err := os.CreateTemp(s.folder, "."+name+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err := file.Write(text); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), filepath.Join(s.folder, name)); err != nil {
		return err
	}
	folder, err := os.Open(s.folder)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeRequest(key crypto.Signer, names []string) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// samePublicKey says whether the certificate is of the key.
func samePublicKey(pair *tls.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(pair.Leaf.PublicKey)
}
